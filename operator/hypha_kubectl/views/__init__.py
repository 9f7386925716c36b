"""What people want to see of objects, and how it is shown. Pure."""
