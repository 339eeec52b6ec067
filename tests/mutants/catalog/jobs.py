"""Jobs: what is drawn, committed, counted, and told of it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_FEED = "rcdm_fast/jobs/feed.py"
_DRAW = "rcdm_fast/jobs/draw.py"
_LOCAL = "rcdm_fast/jobs/local.py"
_LEDGER = "rcdm_fast/jobs/ledger.py"
_ROWS = "rcdm_fast/jobs/rows.py"
_VERIFY = "rcdm_fast/jobs/verify.py"
_ITEMS = "rcdm_fast/data/items.py"
_LAYOUT = "rcdm_fast/jobs/layout.py"
_FORMATS = "rcdm_fast/jobs/formats.py"
_SHARD_TABLES = "rcdm_fast/jobs/shard_tables.py"
_SETTINGS = "rcdm_fast/jobs/settings.py"
_MEMORY = "rcdm_fast/jobs/memory.py"
_STREAM = "rcdm_fast/jobs/stream.py"
_ARRAY_ROWS = "rcdm_fast/data/readers/array_rows.py"
_TARS = "rcdm_fast/data/readers/tars.py"

_DRAW_TESTS = "tests/test_jobs_draw.py"
_OF_LEDGER = ("tests/test_jobs_ledger.py",)
_OF_LAYOUT = ("tests/test_jobs_layout.py",)
_OF_ITEMS = ("tests/test_jobs_items.py",)
_OF_FORMATS = ("tests/test_jobs_formats.py",)

JOBS = (
    Mutant("a group's start is not advanced", _FEED, "        start += len(group.values)\n", "", (f"{_DRAW_TESTS}::test_encoding_with_bad_pictures_in_less_memory",)),
    Mutant("the second half of a group counts from the first", _FEED, "(views[half:], start + half)", "(views[half:], start)", (f"{_DRAW_TESTS}::test_encoding_with_bad_pictures_in_less_memory",)),
    Mutant("items of a group count from zero", _FEED, "enumerate(views, start)", "enumerate(views)", (f"{_DRAW_TESTS}::test_encoding_with_bad_pictures_in_less_memory",)),
    Mutant("groups count from the source's beginning", _FEED, "start, since = unit.first_item, time", "start, since = 0, time", (f"{_DRAW_TESTS}::test_encoding_with_bad_pictures_in_less_memory",)),
    Mutant("unreadable items count from zero", _FEED, "in zip(places, found, strict=True)", "in enumerate(found)", (f"{_DRAW_TESTS}::test_encoding_with_bad_pictures_in_less_memory",)),
    Mutant("a label too many", _FEED, "not 0 <= int(value) < unet.num_classes", "not 0 <= int(value) <= unet.num_classes", (f"{_DRAW_TESTS}::test_more_labels_than_a_group_has",)),
    Mutant("what was drawn before memory failed is drawn again", _DRAW, "                left = left[count:]\n", "", (f"{_DRAW_TESTS}::test_the_same_in_a_stream",)),
    Mutant("after bad samples the batch begins anew", _DRAW, "left[count : count + self.bucket], left[count + self.bucket :]", "left[: self.bucket], left[self.bucket :]", (f"{_DRAW_TESTS}::test_the_same_in_a_stream",)),
    Mutant("suspects are lost", _DRAW, "left[count + self.bucket :]", "left[count + 2 * self.bucket :]", (f"{_DRAW_TESTS}::test_the_same_in_a_stream",)),
    Mutant("suspects are one too few", _DRAW, "left[count : count + self.bucket], left", "left[count : count + self.bucket - 1], left", (f"{_DRAW_TESTS}::test_one_bad_sample_condemns_its_item",)),
    Mutant("bad items are drawn on", _DRAW, "                left = [pair for pair in left if pair[0] not in ready.bad]\n", "", (f"{_DRAW_TESTS}::test_one_bad_sample_condemns_its_item",)),
    Mutant("samples of a bad item slip out", _DRAW, "yield from list(self._within_memory(ready, own))", "yield from self._within_memory(ready, own)", (f"{_DRAW_TESTS}::test_memory_fails_while_a_bad_item_is_looked_for",)),
    Mutant("two pictures are the least", _DRAW, "if self.bucket == 1 or not", "if self.bucket <= 2 or not", (f"{_DRAW_TESTS}::test_memory_for_a_single_picture",)),
    Mutant("the old bucket is told", _DRAW, "                self.bucket //= 2\n                self.on_bucket(self.bucket)\n", "                self.on_bucket(self.bucket)\n                self.bucket //= 2\n", (f"{_DRAW_TESTS}::test_memory_for_a_single_picture",)),
    Mutant("memory is not given back", _DRAW, "                memory.release()\n", "", (f"{_DRAW_TESTS}::test_memory_for_a_single_picture",)),
    Mutant("the solver is lost", _DRAW, "            pairs=[(item - first, sample) for item, sample in pairs],\n            steps=config.steps,\n            solver=config.solver,\n", "            pairs=[(item - first, sample) for item, sample in pairs],\n            steps=config.steps,\n", (f"{_DRAW_TESTS}::test_settings_reach_the_pictures_and_the_manifest",)),
    Mutant("eta is lost", _DRAW, "            eta=config.eta,\n            guidance=config.guidance,\n            seed=config.seed,\n        )\n        for", "            guidance=config.guidance,\n            seed=config.seed,\n        )\n        for", (f"{_DRAW_TESTS}::test_settings_reach_the_pictures_and_the_manifest",)),
    Mutant("guidance is lost", _DRAW, "            guidance=config.guidance,\n            seed=config.seed,\n        )\n        for", "            seed=config.seed,\n        )\n        for", (f"{_DRAW_TESTS}::test_settings_reach_the_pictures_and_the_manifest",)),
    Mutant("the seed is lost", _DRAW, "            seed=config.seed,\n        )\n        for", "        )\n        for", (f"{_DRAW_TESTS}::test_settings_reach_the_pictures_and_the_manifest",)),
    Mutant("buckets are swapped", _DRAW, "return 64 if", "return 32 if", (f"{_DRAW_TESTS}::test_where_nobody_says_how_many",)),
    Mutant("a shorter hash of noise", _DRAW, "[:16]", "[:8]", (f"{_DRAW_TESTS}::test_memory_fails_and_items_are_bad_in_one_run",)),
    Mutant("encoding takes no time", _DRAW, "        self.busy_s += ready.busy_s\n", "", (f"{_DRAW_TESTS}::test_only_the_device_is_busy",)),
    Mutant("waiting for the caller counts as drawing", _DRAW, "            yield Drawn(list(pairs[place]), levels, hashes.pop(place.start))\n            since = time.monotonic()\n", "            yield Drawn(list(pairs[place]), levels, hashes.pop(place.start))\n", (f"{_DRAW_TESTS}::test_only_the_device_is_busy",)),
    Mutant("the remembered bucket wins over a smaller one", _LOCAL, "bucket = asked if known is None else min(asked, known)", "bucket = asked if known is None else known", (f"{_DRAW_TESTS}::test_what_is_asked_and_what_memory_had_room_for",)),
    Mutant("the remembered bucket is forgotten", _LOCAL, "bucket = asked if known is None else min(asked, known)", "bucket = asked", (f"{_DRAW_TESTS}::test_what_is_asked_and_what_memory_had_room_for",)),
    Mutant("all devices are one", _LOCAL, "device = prepared.ledger, str(model.device)", "device = prepared.ledger, model.device.type", (f"{_DRAW_TESTS}::test_every_gpu_has_a_bucket_of_its_own",)),
    Mutant("earlier pictures do not count", _LOCAL, "report(Progress(before.pictures + drawn,", "report(Progress(drawn,", (f"{_DRAW_TESTS}::test_progress_of_a_job_that_goes_on",)),
    Mutant("earlier quarantine does not count", _LOCAL, "drawn, quarantined = 0, before.quarantined", "drawn, quarantined = 0, 0", (f"{_DRAW_TESTS}::test_progress_of_a_job_that_goes_on",)),
    Mutant("the last counts are told", _LOCAL, "drawn, quarantined = drawn + pictures, quarantined + bad", "drawn, quarantined = drawn + pictures, bad", (f"{_DRAW_TESTS}::test_progress_of_a_job_that_goes_on",)),
    Mutant("a drawn sample of a bad item is kept", _LOCAL, "            if item in ready.bad:\n                continue\n", "", (f"{_DRAW_TESTS}::test_samples_of_a_bad_item_that_were_drawn_are_not_kept",)),
    Mutant("a job is finished while shards are missing", _LOCAL, "    if missing:\n        ledger.reopen()\n        pictures", "    if missing:\n        pictures", (f"{_DRAW_TESTS}::test_a_shard_that_is_missing_is_no_finished_job",)),
    Mutant("counted before the damaged are withdrawn", _LOCAL, "        begin(prepared, options)\n        before = ledger.summary()\n", "        before = ledger.summary()\n        begin(prepared, options)\n", (f"{_DRAW_TESTS}::test_a_damaged_shard_does_not_count_as_done",)),
    Mutant("the manifest has no seed of its own", _LOCAL, '"seed": settings.seed,\n            "model"', '"seed": 0,\n            "model"', (f"{_DRAW_TESTS}::test_settings_reach_the_pictures_and_the_manifest",)),
    Mutant("the schedule is not part of the model", _LOCAL, "[dataclasses.asdict(model.config.schedule), dataclasses.asdict(model.config.unet)]", "[dataclasses.asdict(model.config.unet)]", (f"{_DRAW_TESTS}::test_what_a_model_is",)),
    Mutant("the encoder is not part of the model", _LOCAL, "dataclasses.asdict(encoder) if encoder is not None else {})\n", "{})\n", (f"{_DRAW_TESTS}::test_what_a_model_is",)),
    Mutant("complete with a shard missing", _LEDGER, "return self.shards == self.shards_wanted", "return self.shards >= self.shards_wanted - 1", _OF_LEDGER),
    Mutant("complete if there is anything", _LEDGER, "return self.shards == self.shards_wanted", "return self.shards > 0", _OF_LEDGER),
    Mutant("a shard without its pictures is done", _LEDGER, "return {number for number in found if self.shard(number).exists()}", "return found", _OF_LEDGER),
    Mutant("quarantine of what is not committed counts", _LEDGER, "            if int(each.stem) in done:\n                yield from", "            if True:\n                yield from", _OF_LEDGER),
    Mutant("a stale quarantine is kept", _LEDGER, "                self.quarantine(unit.number).unlink(missing_ok=True)\n        write", "                pass\n        write", _OF_LEDGER),
    Mutant("forgotten quarantine stays", _LEDGER, "                each.unlink()\n\n    def withdraw", "\n    def withdraw", _OF_LEDGER),
    Mutant("an item of several shards is counted in each", _LEDGER, 'bad = {row["item"] for row in self.quarantined()}', 'bad = [row["item"] for row in self.quarantined()]', _OF_LEDGER),
    Mutant("an item of several shards is written for each", _LEDGER, '{row["item"]: row for row in self.quarantined()}.values()', "self.quarantined()", _OF_LEDGER),
    Mutant("another device's bucket is lost", _LEDGER, "{**known, device: bucket}", "{device: bucket}", _OF_LEDGER),
    Mutant("any device's bucket", _LEDGER, '_bucket_of(self.folder / "bucket.json").get(device)', 'min(_bucket_of(self.folder / "bucket.json").values(), default=None)', _OF_LEDGER),
    Mutant("a bucket of nothing is believed", _LEDGER, "if int(bucket) > 0}", "if int(bucket) >= 0}", _OF_LEDGER),
    Mutant("shards in any order", _LEDGER, "for number in sorted(self.done()):\n            yield", "for number in self.done():\n            yield", _OF_LEDGER),
    Mutant("joined in any order", _LEDGER, "[self.shard(number) for number in sorted(self.done())]", "[self.shard(number) for number in self.done()]", _OF_LEDGER),
    Mutant("the manifest before the quarantine", _LEDGER, "        if bad:\n            write_lines(self.quarantine", "        write_lines(self.part(unit.number), finished)\n        if bad:\n            write_lines(self.quarantine", _OF_LEDGER),
    Mutant("all bad joins nothing", _LEDGER, 'self.config.format == "npz" and found.pictures:', 'self.config.format == "npz":', _OF_LEDGER),
    Mutant("repairs have the other sign", _LEDGER, "hash_of(item) - old for", "old - hash_of(item) for", _OF_LEDGER),
    Mutant("repairs, not modulo", _LEDGER, "- found) % HASHES == 0", "- found) == 0", _OF_LEDGER),
    Mutant("a temporary bucket stays", _LEDGER, "(job|bucket|summary", "(job|summary", _OF_LEDGER),
    Mutant("a temporary folder of a shard stays", _LEDGER, "shutil.rmtree(each) if each.is_dir() else each.unlink()", "each.is_dir() or each.unlink()", _OF_LEDGER),
    Mutant("a repaired job keeps the old hash", _LEDGER, "self._repaired(before, plain, hash_of):\n            storage.write_json(file, plain)\n", "self._repaired(before, plain, hash_of):\n", _OF_LEDGER),
    Mutant("truth is a number", _ROWS, "type(value) is int and", "isinstance(value, int) and", _OF_LEDGER),
    Mutant("hashes of any length", _ROWS, "isinstance(value, str) and len(value) == _HASH_DIGITS and", "isinstance(value, str) and", _OF_LEDGER),
    Mutant("upper case is a digit", _ROWS, 'frozenset("0123456789abcdef")', 'frozenset("0123456789abcdefABCDEF")', _OF_LEDGER),
    Mutant("keys are of sample and item", _ROWS, 'f"{item:09d}-{sample:06d}"', 'f"{sample:09d}-{item:06d}"', _OF_LEDGER),
    Mutant("keys are not compared", _ROWS, 'if not wrong and row.get("key") !=', 'if wrong and row.get("key") !=', _OF_LEDGER),
    Mutant("another version's job is read", _ROWS, 'if not isinstance(found, dict) or found.get("version") != VERSION:', "if not isinstance(found, dict):", _OF_LEDGER),
    Mutant("a quarantine without content", _ROWS, 'if not _is_count(row.get("item")) or not _is_hash(row.get("content")):', 'if not _is_count(row.get("item")):', _OF_LEDGER),
    Mutant("lines count from zero", _ROWS, "for number, row in enumerate(rows, 1):\n        wrong", "for number, row in enumerate(rows):\n        wrong", _OF_LEDGER),
    Mutant("faults are counted as they are shown", _VERIFY, "        count += found.faults\n", "        count += len(found.examples)\n", _OF_LEDGER),
    Mutant("strange shards count", _VERIFY, "len([each for each in known if each < layout.units])", "len(known)", _OF_LEDGER),
    Mutant("rows beyond the shorter are not looked at", _VERIFY, "pairs = itertools.zip_longest(read_lines(whole), rows())", "pairs = zip(read_lines(whole), rows(), strict=False)", _OF_LEDGER),
    Mutant("pictures beyond the shorter are not looked at", _VERIFY, 'itertools.zip_longest(found, (row["sha256"] for row in rows()))', 'zip(found, (row["sha256"] for row in rows()), strict=False)', _OF_LEDGER),
    Mutant("a torn shard has no pictures", _VERIFY, "                found += ledger.form.read(path, [row])\n", "                raise storage.StorageError(str(path))\n", _OF_LEDGER),
    Mutant("a picture may be there twice", _VERIFY, "            seen.add(pair)\n", "", _OF_LEDGER),
    Mutant("a quarantine beside a manifest is believed", _VERIFY, "sorted(bad & own & drawn)", "sorted(bad & own - drawn)", _OF_LEDGER),
    Mutant("an item's place is not hashed", _ITEMS, 'f"{place}\\0{source.id(place)}\\0"', 'f"{source.id(place)}\\0"', _OF_LEDGER),
    Mutant("an item's id is not hashed", _ITEMS, 'f"{place}\\0{source.id(place)}\\0"', 'f"{place}\\0"', _OF_LEDGER),
    Mutant("the first item is not hashed", _ITEMS, "in range(len(source))) %", "in range(1, len(source))) %", _OF_LEDGER),
    Mutant("id runs into content", _ITEMS, '{source.id(place)}\\0".encode', '{source.id(place)}".encode', _OF_LEDGER),
    Mutant("unequal parts", _LAYOUT, "size = -(-self.per // self._parts)", "size = self.limit", _OF_LAYOUT),
    Mutant("a stale shard folder stays", _FORMATS, "                    shutil.rmtree(path)\n", "                    shutil.copytree(path, temporary, dirs_exist_ok=True)\n                    shutil.rmtree(path)\n", (f"{_DRAW_TESTS}::test_a_stale_folder_of_a_shard_is_replaced",)),
    Mutant("jpeg loses colour", _FORMATS, '"subsampling": 0}', '"subsampling": 2}', _OF_FORMATS),
    Mutant("quality is lost", _FORMATS, '"jpeg": {"quality": quality, ', '"jpeg": {', _OF_FORMATS),
    Mutant("quality of webp is lost", _FORMATS, 'else {"quality": quality},', "else {},", _OF_FORMATS),
    Mutant("jpeg files are called jpeg", _FORMATS, '"jpeg": "jpg"', '"jpeg": "jpeg"', _OF_FORMATS),
    Mutant("modes of members are the user's", _FORMATS, "_BITS = 0o644", "_BITS = 0o600", _OF_FORMATS),
    Mutant("beyond the array", _FORMATS, 'if row["offset"] < len(pixels) else b""', 'if row["offset"] <= len(pixels) else b""', _OF_FORMATS),
    Mutant("what follows the pictures is ignored", _FORMATS, "        if file.read(1):\n", "        if False:\n", _OF_FORMATS),
    Mutant("groups do not shrink", _SHARD_TABLES, "start, size = place, 0\n", "start = place\n", _OF_FORMATS),
    Mutant("a group that is just full is split", _SHARD_TABLES, "len(picture.payload) > GROUP_BYTES", "len(picture.payload) >= GROUP_BYTES", _OF_FORMATS),
    Mutant("seeds are signed", _SHARD_TABLES, '"seed": arrow.uint64()', '"seed": arrow.int64()', _OF_FORMATS),
    Mutant("files without extension", _SHARD_TABLES, 'f"{each.key}.{self.extension}"', "each.key", _OF_FORMATS),
    Mutant("beyond the table", _SHARD_TABLES, 'if row["offset"] < len(payloads) else None', 'if row["offset"] <= len(payloads) else None', _OF_FORMATS),
    Mutant("another default of steps", _SETTINGS, "Count | str = 50", "Count | str = 25", _OF_ITEMS),
    Mutant("another default quality", _SETTINGS, "Range(1, 100)] = 95", "Range(1, 100)] = 75", _OF_ITEMS),
    Mutant("a quality above all", _SETTINGS, "Range(1, 100)", "Range(1, 101)", _OF_ITEMS),
    Mutant("eta and guidance are swapped", _STREAM, "JobConfig(per, steps, solver, eta, guidance, seed)", "JobConfig(per, steps, solver, guidance, eta, seed)", _OF_ITEMS),
    Mutant("the threads are lost (generate)", _STREAM, "RunOptions(batch_size, threads)", "RunOptions(batch_size)", _OF_ITEMS),
    Mutant("one way to say it is unknown", _MEMORY, '"cannot allocate memory", ', "", _OF_ITEMS),
    Mutant("another way to say it is unknown", _MEMORY, '    "bad_alloc", "bad allocation",\n', '    "bad_alloc",\n', _OF_ITEMS),
    Mutant("nothing is given back", _MEMORY, "        torch.cuda.empty_cache()\n", "        pass\n", _OF_ITEMS),
    Mutant("any number of ids", _ARRAY_ROWS, "            if len(ids) != len(rows):\n", "            if len(ids) < len(rows):\n", _OF_ITEMS),
    Mutant("infinite representations are items", _ARRAY_ROWS, "            if not bool(h.isfinite().all()):\n", "            if bool(h.isnan().any()):\n", _OF_ITEMS),
    Mutant("width is the last side", _ARRAY_ROWS, "math.prod(self._rows.shape[1:])", "int(self._rows.shape[-1])", _OF_ITEMS),
    Mutant("halves of rows", _ARRAY_ROWS, "row.contiguous().view(torch.uint8)", "row.contiguous().to(torch.uint8)", _OF_ITEMS),
    Mutant("arrays' content in memory's order", _ARRAY_ROWS, "return np.ascontiguousarray(row).tobytes()", "return np.ascontiguousarray(row)[:1].tobytes()", _OF_ITEMS),
    Mutant("a representation is the source's own", _ARRAY_ROWS, "row.to(torch.float32, copy=True)", "row.to(torch.float32)", _OF_ITEMS),
    Mutant("matrices are representations", _ARRAY_ROWS, "sum(side != 1 for side in shape[1:]) <= 1", "sum(side != 1 for side in shape[1:]) <= 2", _OF_ITEMS),
    Mutant("several labels an item", _ARRAY_ROWS, "(len(shape) == 2 and shape[1] == 1)", "len(shape) == 2", _OF_ITEMS),
    Mutant("names before ids", _ARRAY_ROWS, '_ID_NAMES = ("ids", "id", "paths", "names")', '_ID_NAMES = ("names", "ids", "id", "paths")', _OF_ITEMS),
    Mutant("the first of several", _ARRAY_ROWS, "fits = fits if len(fits) == 1 else []", "fits = fits[:1]", _OF_ITEMS),
    Mutant("labels before pictures", _ARRAY_ROWS, '        fits.sort(key=lambda key: _known_kind(held[key]) == "label")\n', '        fits.sort(key=lambda key: _known_kind(held[key]) != "label")\n', _OF_ITEMS),
    Mutant("ranges go up only", _TARS, "step = 1 if high >= low else -1", "step = 1", _OF_ITEMS),
    Mutant("numbers lose their zeros", _TARS, 'len(first) if first.startswith("0") or len(first) == len(last) else 0', "0", _OF_ITEMS),
    Mutant("numbers get zeros", _TARS, 'len(first) if first.startswith("0") or len(first) == len(last) else 0', "len(last)", _OF_ITEMS),
    Mutant("several braces in another order", _TARS, "for start in before for choice in choices for end in after]", "for end in after for choice in choices for start in before]", _OF_ITEMS),
    Mutant("the file's label is the description's", _TARS, "        if cls is not None:\n            return", "        if described is None and cls is not None:\n            return", _OF_ITEMS),
    Mutant("numbers are no labels", _TARS, "isinstance(found, str | int | float) else None\n\n\ndef is_shard", "isinstance(found, str) else None\n\n\ndef is_shard", _OF_ITEMS),
    Mutant("one of two of the same name", _TARS, "if at != (member.part, key) or any(part.behind == behind for part in group):", "if at != (member.part, key):", _OF_ITEMS),
    Mutant("joined archives are one", _TARS, "if at != (member.part, key) or any", "if at is None or at[1] != key or any", _OF_ITEMS),
    Mutant("the folder is not part of the key", _TARS, 'return "/".join([*parts[:-1], base]), behind', "return base, behind", _OF_ITEMS),
    Mutant("labels of the key only", _TARS, 'parts.get(f"{own}.{name}" if own else name) or parts.get(name)', "parts.get(name)", _OF_ITEMS),
    Mutant("labels of the name only", _TARS, 'parts.get(f"{own}.{name}" if own else name) or parts.get(name)', 'parts.get(f"{own}.{name}" if own else name)', _OF_ITEMS),
    Mutant("large descriptions are read", _TARS, "or part.member.size > _ABOUT_BYTES:", "or part.member.size > _PACKED_BYTES:", _OF_ITEMS),
    Mutant("links lead anywhere", _TARS, "(member.part, posixpath.normpath(name)) for name in (member.link, beside)", "(member.part, posixpath.normpath(name)) for name in (member.link,)", _OF_ITEMS),
    Mutant("a picture with holes is read", _TARS, "        if self.offset[place] < 0:\n", "        if self.offset[place] < -1:\n", _OF_ITEMS),
    Mutant("joined parts count from zero", _TARS, "{int(part) + 1}", "{int(part)}", _OF_ITEMS),
    Mutant("joined archives have one number", _TARS, "part.content, number, (cls, described))", "part.content, 0, (cls, described))", _OF_ITEMS),
)  # fmt: skip
