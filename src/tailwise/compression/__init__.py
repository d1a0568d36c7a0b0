"""Compression: what is done to which tensor, how that is chosen, tried, carried out and read back.

    plans/      what is planned: a Plan is Decisions, each a site and a treatment; files, checks, comparison
    operators/  what is done to one matrix: one table, pruners and quantizers alike
    choosing/   where how much: ways to spread amounts and number formats, and the knapsack under them
    walking/    a model block by block, and what its layers see
    applying/   a plan carried out: tensor by tensor or block by block, written, resumed, read back
    shrinking/  models that get smaller: heads, neurons, blocks, factors
    packing/    models as codes and scales that servers load
    trying/     plans tried on the model before one is kept
    export/     plans as other tools read them
    recovery/   training what is left

The way: audit, request → `plans.make` → Plan → `applying.apply` → checkpoint → Applied. With text, `trying.run` tries
plans first, by the same two functions (`applying.treated`) that write.
"""
