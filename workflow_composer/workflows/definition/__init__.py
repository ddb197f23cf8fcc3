"""A workflow as it is written: read, checked, and put in order."""
