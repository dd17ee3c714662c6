"""A page's form: its fields, what is read of them and written into them, and what is said beside them."""
