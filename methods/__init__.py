"""Federated methods: one file each, held against its paper."""
