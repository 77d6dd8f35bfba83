"""Configurations: YAML files and the reader that turns them into typed dataclasses."""
