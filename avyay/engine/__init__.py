"""The build engine: a task queue that never lies, a dependency graph, agents that cannot run away."""
