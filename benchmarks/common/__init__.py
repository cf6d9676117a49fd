"""What the benchmark scripts share: data, networks, training, tables and pages."""
