"""Five architectures: layers, then graph, then doors."""
