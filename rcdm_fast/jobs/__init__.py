"""Batch generation: many images of many items into shards with a manifest, resumable after any stop.

settings  what a job is
layout    which images belong together (a unit of work, a shard)
feed      reading and encoding ahead of the device
draw      a unit's images, whatever goes wrong with single items or memory
formats   shards: WebDataset, folders, npz, Parquet
ledger    what is finished: manifest, quarantine, settings of the job
local     the job on one device; cluster: on Ray
stream    the same without files: `rcdm_fast.generate`

Items come from `rcdm_fast.data.random_access`.
"""
