"""What lies in some folders and a store: audits, plans, runs; found, named, read and kept in memory."""
