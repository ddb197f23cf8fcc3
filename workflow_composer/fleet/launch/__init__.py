"""Starting one vLLM server and keeping it: preflight, command line, process, supervisor."""
