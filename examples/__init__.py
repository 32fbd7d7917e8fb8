"""The main job, as a user of the Tinker SDK and the cookbook would write it; `make demo` runs all of it."""
