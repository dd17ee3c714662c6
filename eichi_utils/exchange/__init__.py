"""Read and write the formats that other programs and people use."""
