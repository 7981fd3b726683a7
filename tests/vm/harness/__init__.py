"""The harness of the VM tests: images, machines, and what is told of the tests."""
