"""Compression: what is done to which tensor, how that is chosen, tried, carried out and read back.

    operators/  what is done to one matrix: one table, pruners and quantizers alike
    plans/      what is planned: a Plan is Decisions, each a site and a treatment; files, checks, comparison
    choosing/   where how much: ways to spread amounts and number formats, and the knapsack under them
    making/     audit and request → Plan
    export/     plans as other tools read them
    walking/    a model block by block, and what its layers see
    treating/   tensors and layers as their treatment leaves them, kept, and read back
    shrinking/  models that get smaller: heads, neurons, blocks, factors
    packing/    models as codes and scales that servers load
    applying/   Plan and checkpoint → checkpoint: written whole, resumed, with its card
    recovery/   training what is left
    trying/     plans tried on the model before one is kept

Each imports those above it alone. The way: audit, request → `making.make` → Plan → `applying.apply` → checkpoint →
Applied. With text, `trying.run` tries plans first, by the same two functions (`treating.treated`) that write.
"""
