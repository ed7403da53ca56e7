"""Everything that knows about the frozen vision-language model: its anatomy, taps, layouts and inputs."""
