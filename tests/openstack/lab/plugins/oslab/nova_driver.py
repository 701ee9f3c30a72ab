"""Nova's fake virt driver, and what a product misses in it: config drives, guests that somebody plays, faults.

- Servers survive a restart of nova-compute, which the fake keeps in memory.
- The config drive is built, as files under `$state_path/instances/UUID/config-drive/openstack/`: what the guest reads.
- Guests: every executable in the directory `[oslab] guest_hooks` is run as `HOOK ACTION` with a JSON document on
  stdin, in the order of their names, for spawn, destroy, power_on, power_off, reboot, attach_volume and detach_volume.
  nova-compute waits for it: what is to live longer it must start detached. A resize comes as power_off on the old
  host and spawn on the new one; then, when it is confirmed, as destroy on the old one, and, when it is reverted, as
  destroy on the new one and power_on on the old one. A rebuild comes as destroy and spawn.
- Faults, by the server's metadata: `lab:fail` names some of spawn, rebuild, reboot, resize, finish_resize, power_on,
  power_off, attach_volume, detach_volume, with commas; `lab:delay` is how many seconds spawn, reboot and resize take.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import nova.conf
from nova import exception
from nova.api.metadata import base as instance_metadata
from nova.compute import power_state
from nova.virt import configdrive, fake
from oslo_config import cfg

CONF = nova.conf.CONF
CONF.register_opts([cfg.StrOpt("guest_hooks"), cfg.IntOpt("guest_hook_timeout", default=120)], group="oslab")

WAITS = frozenset({"spawn", "reboot", "resize"})


class LabDriver(fake.FakeDriverWithoutFakeNodes):
    """A host of 64 processors."""

    vcpus = 64
    memory_mb = 65536
    local_gb = 1000

    def get_host_uptime(self):
        return Path("/proc/uptime").read_text()

    @staticmethod
    def _may(action, instance):
        metadata = instance.metadata or {}
        if action in WAITS:
            time.sleep(float(metadata.get("lab:delay", 0)))
        if action in metadata.get("lab:fail", "").split(","):
            raise exception.NovaException(f"lab:fail asked {action} of {instance.uuid} to fail")

    @staticmethod
    def _directory(instance):
        return Path(CONF.state_path) / "instances" / instance.uuid

    def _adopt(self, instance):
        """Know a server that an earlier nova-compute had spawned."""
        state = instance.power_state or power_state.RUNNING
        self.instances.setdefault(instance.uuid, fake.FakeInstance(instance.name, state, instance.uuid))

    def _write_config_drive(self, instance, files, password, network_info):
        top = self._directory(instance) / "config-drive"
        shutil.rmtree(top, ignore_errors=True)
        extra = {"admin_pass": password} if password else {}
        metadata = instance_metadata.InstanceMetadata(
            instance, content=files or [], extra_md=extra, network_info=network_info
        )
        with configdrive.ConfigDriveBuilder(instance_md=metadata) as builder:
            for name, data in builder.mdfiles:
                path = top / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data if isinstance(data, bytes) else data.encode())

    def _play(self, action, instance, **details):
        document = {
            "uuid": instance.uuid,
            "name": instance.display_name,
            "project_id": instance.project_id,
            "dir": str(self._directory(instance)),
            "host": CONF.host,
            "metadata": dict(instance.metadata or {}),
            "vcpus": instance.flavor.vcpus,
            "memory_mb": instance.flavor.memory_mb,
            **details,
        }
        for hook in sorted(Path(CONF.oslab.guest_hooks).iterdir()):
            if not os.access(hook, os.X_OK):
                continue
            try:
                subprocess.run(
                    [hook, action],
                    check=True,
                    text=True,
                    input=json.dumps(document, default=str),
                    capture_output=True,
                    timeout=CONF.oslab.guest_hook_timeout,
                )
            except (subprocess.SubprocessError, OSError) as error:
                said = getattr(error, "stderr", None) or ""
                raise exception.NovaException(f"guest hook {hook.name} {action}: {error} {said}"[:2000]) from error

    @staticmethod
    def _nics(network_info):
        return [
            {
                "port_id": vif["id"],
                "mac": vif["address"],
                "network_id": vif["network"]["id"],
                "ips": [ip["address"] for ip in vif.fixed_ips()],
                "cidrs": [subnet["cidr"] for subnet in vif["network"]["subnets"]],
            }
            for vif in network_info or []
        ]

    @staticmethod
    def _disks(block_device_info):
        return [
            {"mount_device": each["mount_device"], "path": each["connection_info"]["data"].get("device_path")}
            for each in (block_device_info or {}).get("block_device_mapping", [])
        ]

    # --- the life of a server ---------------------------------------------------------------------------------------

    def spawn(
        self,
        context,
        instance,
        image_meta,
        injected_files,
        admin_password,
        allocations,
        network_info=None,
        block_device_info=None,
        power_on=True,
        accel_info=None,
    ):
        self._may("spawn", instance)
        super().spawn(
            context,
            instance,
            image_meta,
            injected_files,
            admin_password,
            allocations,
            network_info,
            block_device_info,
            power_on,
            accel_info,
        )
        self._directory(instance).mkdir(parents=True, exist_ok=True)
        try:
            if configdrive.required_by(instance):
                self._write_config_drive(instance, injected_files, admin_password, network_info)
            self._play(
                "spawn",
                instance,
                user_data=instance.user_data,
                nics=self._nics(network_info),
                disks=self._disks(block_device_info),
                image=str(instance.image_ref),
            )
        except Exception:
            self.instances.pop(instance.uuid, None)
            raise

    def rebuild(self, context, instance, *args, **kwargs):
        self._may("rebuild", instance)
        raise NotImplementedError  # Nova then does it by destroy and spawn

    def destroy(
        self,
        context,
        instance,
        network_info,
        block_device_info=None,
        destroy_disks=True,
        destroy_secrets=True,
    ):
        self._play("destroy", instance)
        super().destroy(context, instance, network_info, block_device_info, destroy_disks, destroy_secrets)
        if destroy_disks:
            shutil.rmtree(self._directory(instance), ignore_errors=True)

    def resume_state_on_host_boot(self, context, instance, network_info, share_info, block_device_info=None):
        self._adopt(instance)
        self.instances[instance.uuid].state = power_state.RUNNING
        self._play("power_on", instance)

    def reboot(self, context, instance, network_info, reboot_type, *args, **kwargs):
        self._may("reboot", instance)
        self._adopt(instance)
        super().reboot(context, instance, network_info, reboot_type, *args, **kwargs)
        self._play("reboot", instance, type=reboot_type)

    def power_off(self, instance, timeout=0, retry_interval=0):
        self._may("power_off", instance)
        self._adopt(instance)
        self._play("power_off", instance)
        super().power_off(instance, timeout, retry_interval)

    def power_on(self, context, instance, network_info, *args, **kwargs):
        self._may("power_on", instance)
        self._adopt(instance)
        super().power_on(context, instance, network_info, *args, **kwargs)
        self._play("power_on", instance)

    def migrate_disk_and_power_off(self, context, instance, dest, *args, **kwargs):
        self._may("resize", instance)
        self._play("power_off", instance)
        return super().migrate_disk_and_power_off(context, instance, dest, *args, **kwargs)

    def finish_migration(
        self,
        context,
        migration,
        instance,
        disk_info,
        network_info,
        image_meta,
        resize_instance,
        allocations,
        block_device_info=None,
        power_on=True,
        **kwargs,
    ):
        self._may("finish_resize", instance)
        # What the fake does as well: a server that was moved is spawned on its new host.
        self.spawn(
            context,
            instance,
            image_meta,
            None,
            None,
            allocations,
            network_info=network_info,
            block_device_info=block_device_info,
            power_on=power_on,
        )

    def finish_revert_migration(self, context, instance, *args, **kwargs):
        super().finish_revert_migration(context, instance, *args, **kwargs)
        self._play("power_on", instance)

    def attach_volume(self, context, connection_info, instance, mountpoint, *args, **kwargs):
        self._may("attach_volume", instance)
        super().attach_volume(context, connection_info, instance, mountpoint, *args, **kwargs)
        path = connection_info["data"].get("device_path")
        self._play("attach_volume", instance, mount_device=mountpoint, path=path)

    def detach_volume(self, context, connection_info, instance, mountpoint, *args, **kwargs):
        self._may("detach_volume", instance)
        path = connection_info["data"].get("device_path")
        self._play("detach_volume", instance, mount_device=mountpoint, path=path)
        super().detach_volume(context, connection_info, instance, mountpoint, *args, **kwargs)
