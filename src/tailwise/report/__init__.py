"""What people see and keep: terminal tables and files."""
