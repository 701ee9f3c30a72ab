"""A machine for a server of the lab, whose hypervisor runs nothing: the real agent and a real database.

It gets what a machine gets, its config drive and its disks, and does what a machine does. See `machine.py`.
"""
