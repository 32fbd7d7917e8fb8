"""The sample service of Tinsmith."""
