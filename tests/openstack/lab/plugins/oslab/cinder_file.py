"""Cinder's volumes as sparse files under `$state_path/volumes`: they keep data, grow, and are attached by their path.

The metadata of a volume has actions fail or take long: `lab:fail` names some of create, delete, extend, snapshot,
attach, detach, with commas; `lab:delay` is how many seconds a creation, a deletion and an extension take.
"""

import subprocess
import time
from pathlib import Path

from cinder import exception, interface
from cinder.volume import driver
from oslo_config import cfg

CONF = cfg.CONF
GIB = 1024**3


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    """One file for each volume."""

    VERSION = "1.0"
    CI_WIKI_NAME = "none"

    def do_setup(self, context):
        self._root = Path(CONF.state_path) / "volumes"
        self._root.mkdir(parents=True, exist_ok=True)

    def check_for_setup_error(self):
        pass

    def _path(self, volume):
        return self._root / volume.name

    @staticmethod
    def _may(action, volume):
        metadata = volume.metadata or {}
        if action in ("create", "delete", "extend"):
            time.sleep(float(metadata.get("lab:delay", 0)))
        if action in metadata.get("lab:fail", "").split(","):
            raise exception.VolumeBackendAPIException(data=f"lab:fail asked {action} of {volume.id} to fail")

    def _make(self, volume, size):
        with self._path(volume).open("ab") as file:
            file.truncate(size * GIB)

    def create_volume(self, volume):
        self._may("create", volume)
        self._make(volume, volume.size)

    def delete_volume(self, volume):
        self._may("delete", volume)
        self._path(volume).unlink(missing_ok=True)

    def extend_volume(self, volume, new_size):
        self._may("extend", volume)
        self._make(volume, new_size)

    # A snapshot is a copy beside the volume, in which what is empty takes no room.

    def create_snapshot(self, snapshot):
        self._may("snapshot", snapshot.volume)
        copy = ["cp", "--sparse=always", str(self._path(snapshot.volume)), str(self._path(snapshot))]
        subprocess.run(copy, check=True, timeout=60)

    def delete_snapshot(self, snapshot):
        self._path(snapshot).unlink(missing_ok=True)

    # Volumes that servers boot from. All images are raw, so that no qemu-img is needed.

    def clone_image(self, context, volume, image_location, image_meta, image_service):
        self._may("create", volume)
        self.copy_image_to_volume(context, volume, image_service, image_meta["id"])
        return {}, True

    def copy_image_to_volume(self, context, volume, image_service, image_id, disable_sparse=False):
        with self._path(volume).open("wb") as file:
            image_service.download(context, image_id, file)
        self._make(volume, volume.size)

    # What the interface wants and Holdfast does not use.

    def create_cloned_volume(self, volume, src_vref):
        raise NotImplementedError

    def create_volume_from_snapshot(self, volume, snapshot):
        raise NotImplementedError

    # Attachments: there is nothing to export, since the compute host is this machine.

    def ensure_export(self, context, volume):
        pass

    def create_export(self, context, volume, connector):
        pass

    def remove_export(self, context, volume):
        pass

    def initialize_connection(self, volume, connector, **kwargs):
        self._may("attach", volume)
        return {"driver_volume_type": "local", "data": {"device_path": str(self._path(volume))}}

    def terminate_connection(self, volume, connector, **kwargs):
        self._may("detach", volume)

    def get_volume_stats(self, refresh=False):
        return {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "Holdfast's lab",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": "infinite",
            "free_capacity_gb": "infinite",
            "reserved_percentage": 0,
            "multiattach": False,
            "online_extend_support": True,
            "thin_provisioning_support": True,
            "QoS_support": False,
        }
