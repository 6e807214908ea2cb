"""Tracing with stand-ins for tensors: for modules that no recorded call runs."""
