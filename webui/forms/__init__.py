"""Build a page's form: its fields, reading a request from them, writing one into them, and the messages beside them."""
