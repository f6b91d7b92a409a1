"""What nbgrader is told: grade in containers."""

c = get_config()  # noqa: F821 - nbgrader's

c.CourseDirectory.course_id = "isolation"
# Every submission runs in a container of its own: 1 GiB of memory, no network, its folder copy-on-write.
c.Execute.kernel_name = "isolated-python"
# Seconds for one cell, counted outside of the container.
c.Execute.timeout = 60
# What students find in place of a solution, as in the course's own notebooks.
c.ClearSolutions.code_stub = {"python": "# your code here"}
