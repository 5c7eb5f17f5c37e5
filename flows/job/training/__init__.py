"""The part of a job that trains works: by the members of a worker group, each work resumed, logged and written whole."""
