"""A data set becomes networks: teachers, students, and how good they are."""
