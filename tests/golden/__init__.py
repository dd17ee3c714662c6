"""Reference vectors and their replay through the product's code."""
