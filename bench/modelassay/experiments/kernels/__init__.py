"""How fast each operation is beside its peers and beside what the device can do at best."""
