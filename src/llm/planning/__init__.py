"""What a run will cost before it is run: parameters, FLOPs, memory, time, and runs made equal."""
