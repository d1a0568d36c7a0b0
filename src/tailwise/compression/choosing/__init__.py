"""Where how much: from candidates and a budget to an amount or a number format for each. One function each way."""
