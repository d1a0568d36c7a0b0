"""Many models: a list or a query is audited by any number of workers, into one data set and one order."""
