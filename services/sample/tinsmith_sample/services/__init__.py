"""What the sample service does, without HTTP."""
