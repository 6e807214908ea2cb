"""Copy a module tree; its tensors are shared until they are owned."""
