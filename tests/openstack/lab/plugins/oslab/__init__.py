"""Drivers that let the services of OpenStack run without agents, hypervisors or disk arrays."""
