"""Sixty bugs as people make them, one replacement each, over all rooms of the source: what the suite is measured by.

Each was chosen for what it would do to results, files or people, before anybody looked whether a test would see it; each
changes what somebody using Coterie could notice. `tests.faults.seeded` tries them by number, counted from 1.
"""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """One small mistake."""

    file: str
    """Below ``src/coterie``."""
    old: str
    """Occurs there exactly once."""
    new: str
    why: str
    """What is wrong with it, for people."""


BUGS = (
    # store
    Bug(
        "store/objects.py",
        "            sync(path)\n            digests[name]",
        "            digests[name]",
        "a published file is not flushed: after a power cut it may be empty",
    ),
    Bug(
        "store/objects.py",
        '        if sizes:\n            raise ValueError(f"{min(sizes)} does not belong to it")\n',
        "",
        "a file that was added to an object goes unnoticed",
    ),
    Bug(
        "store/objects.py",
        "info.st_size, info.st_mtime_ns, info.st_ctime_ns)",
        "info.st_size, info.st_mtime_ns, info.st_mtime_ns)",
        "an edit of the same size whose mtime was put back goes unnoticed",
    ),
    Bug(
        "store/store.py",
        "with explained(self.root, label), self._lease(action, label):",
        "with explained(self.root, label):",
        "two processes that ask for one thing both make it",
    ),
    Bug(
        "store/inventory.py",
        "if run.out.is_dir() or run.host != HOST]",
        "if run.out.is_dir()]",
        "prune sweeps what runs of other machines rest on",
    ),
    # spec
    Bug("spec/settings.py", "allow_inf_nan=False", "allow_inf_nan=True", "a setting may be NaN or infinite"),
    Bug(
        "spec/settings.py",
        "    if value.isdigit():\n",
        "    if not value:\n",
        "an expert may be called by digits alone, and PEFT loses the weights of such adapters",
    ),
    # dates, shares
    Bug(
        "dates.py",
        "int(match[2] or 1), int(match[3] or 1))",
        "int(match[2] or 12), int(match[3] or 1))",
        "a query of 2016 is answered as of December: what came before leaks",
    ),
    Bug(
        "shares.py",
        "(2 * np.arange(1, U + 1) - U - 1)",
        "(2 * np.arange(1, U + 1) - U)",
        "the Gini coefficient of equal shares is 1/U",
    ),
    # corpora
    Bug(
        "corpora/packing.py",
        "for offset in range(0, size - 1, self.capacity - 1):",
        "for offset in range(0, size - 1, self.capacity):",
        "pieces of a long document do not overlap: the first token of each is never learned",
    ),
    Bug(
        "corpora/blocks.py",
        '        "limit_tokens": limit_tokens,\n',
        "",
        "the token limit is no part of the blocks' address: another limit serves the old blocks",
    ),
    Bug(
        "corpora/blocks.py",
        'before = pc.less(table["time"]',
        'before = pc.less_equal(table["time"]',
        "a window takes the day of its end: a leak of one day",
    ),
    Bug(
        "corpora/blocks.py",
        ">= np.repeat(first_target_P[p], size)) & (signed >= 0)",
        ">= np.repeat(first_target_P[p], size))",
        "what the user says in a conversation is learned too",
    ),
    Bug(
        "corpora/splits.py",
        "deciding = [of_root[root] for root in roots]",
        "deciding = [hashlib.sha256(name).digest()[8:16] for name in names]",
        "groups that share a content fall into different splits: a leak",
    ),
    Bug(
        "corpora/order.py",
        "shuffled(len(tokens_N), seed, s, p) for p in",
        "shuffled(len(tokens_N), seed, s, 0) for p in",
        "every pass over the data is in the same order",
    ),
    # models
    Bug(
        "models/logprob.py",
        "return logp_BT if position_BT is None else logp_BT.masked_fill(position_BT[:, 1:] == 0, 0.0)",
        "return logp_BT",
        "a document's first token is scored as if the document before it predicted it",
    ),
    Bug(
        "models/lora_files.py",
        "alpha / (r**0.5 if config.use_rslora else r)",
        "alpha / r",
        "adapters trained with rank-stabilised scaling are read with the scale of the others",
    ),
    Bug(
        "models/stack_blocks.py",
        "w_M = w_MU if block.unit else w_MU * block.scale_R",
        "w_M = w_MU",
        "the scale alpha / r is left out where all adapters have one rank",
    ),
    Bug(
        "models/checkpoint.py",
        "sentencepiece.bpe.model chat_template.jinja",
        "sentencepiece.bpe.model",
        "the chat template is neither copied beside an expert's weights nor part of a model's digest",
    ),
    # experts
    Bug(
        "experts/loop.py",
        'f"{self.seed}/{state.global_step}{rank}"',
        'f"{self.seed}{rank}"',
        "dropout is the same at every step",
    ),
    Bug(
        "experts/loop.py",
        '{n: p.detach().to("cpu", copy=True) for n, p in',
        "{n: p.detach() for n, p in",
        "early stopping keeps the last weights for the best ones, being the same memory",
    ),
    Bug(
        "experts/scores.py",
        "targets = source.target[:, 1:].astype(bool)",
        "targets = source.target[:, :-1].astype(bool)",
        "the nll of an expert counts the tokens beside its targets",
    ),
    Bug(
        "experts/training_checkpoints.py",
        'if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:',
        'if path.stat().st_size != entry["size"]:',
        "a checkpoint with a flipped bit is gone on from",
    ),
    Bug(
        "experts/train_settings.py",
        'left_out = {"save_every", ',
        'left_out = {"clip", "save_every", ',
        "an expert trained with another clip is served for this one",
    ),
    # routing
    Bug(
        "routing/logits_to_weights.py",
        "ranked_BTU.exp() < self.top_p",
        "ranked_BTU.exp() <= self.top_p",
        "top_p keeps one expert too many where the weights sum to it exactly",
    ),
    Bug(
        "routing/logits_to_weights.py",
        "prior_BTU = logits_BTU / temperature + log_count_U",
        "prior_BTU = (logits_BTU + log_count_U) / temperature",
        "with a temperature, equal slots weigh otherwise than their sum",
    ),
    Bug(
        "routing/gates.py",
        "(_counted(x, counted_N) for x in (gated.weight_NS.detach(),",
        "(_counted(x, None) for x in (gated.weight_NS.detach(),",
        "the balance loss counts padding",
    ),
    Bug(
        "routing/eligibility.py",
        "first <= at for first in self._first",
        "first < at for first in self._first",
        "an expert may not be used on the very day from which it may",
    ),
    Bug(
        "routing/scan.py",
        "power_T1 = decay ** (index_T[:, None] + 1)",
        "power_T1 = decay ** index_T[:, None]",
        "generation token by token forgets one step less than a pass over the whole text",
    ),
    Bug(
        "routing/fit.py",
        "    router.load_state_dict(best)\n",
        "",
        "the router's last state is kept instead of the best on held-out tokens",
    ),
    # select
    Bug(
        "select/pick.py",
        "return merit_N / temperature - np.log",
        "return merit_N * temperature - np.log",
        "a low temperature draws by lot instead of by merit",
    ),
    Bug(
        "select/contamination.py",
        "return [against.words, against.text, [[",
        "return [against.text, [[",
        "the length of a run is no part of a profile's address: another length serves the old shares",
    ),
    Bug(
        "select/filters.py",
        "rows = np.flatnonzero((reason == 0) | (reason == HELD_OUT))",
        "rows = np.flatnonzero(reason == 0)",
        "training documents that nearly repeat held-out ones stay",
    ),
    # mixtures at outputs
    Bug(
        "mixtures/outputs/outputs_mixture.py",
        "(self._log_weights(query, evidence_BTU) - self.log_count_U).exp()",
        "self._log_weights(query, evidence_BTU).exp()",
        "each slot shows the whole weight of its expert: weights over slots add up to more than 1",
    ),
    Bug(
        "mixtures/outputs/outputs_place.py",
        'LATER = {"top_k", "top_p"}',
        'LATER = {"top_k", "top_p", "temperature"}',
        "a router fitted at another temperature is served for this one",
    ),
    Bug(
        "mixtures/outputs/coadaptation.py",
        '"inclusive": ("end", 1)}',
        '"inclusive": ("end", 0)}',
        "co-adaptation lets the expert of the next window answer: a leak of one day",
    ),
    # mixtures at layers
    Bug(
        "mixtures/layers/layer_gate_fits.py",
        "found.append(inputs[0][counted_BT])",
        "found.append(inputs[0].flatten(0, 1))",
        "gates are fitted on padding too",
    ),
    Bug(
        "mixtures/layers/layers_place.py",
        'action = Action("merged", {"shared": self.shared}, inputs)',
        'action = Action("merged", {}, inputs)',
        "the rule for what is shared is no part of a merge's address: base and average are served for each other",
    ),
    # mixtures at adapters
    Bug(
        "mixtures/adapters/joint_training.py",
        "run.seed * 1000 + u) for u in",
        "run.seed) for u in",
        "experts that are trained together all start from the same adapter",
    ),
    Bug(
        "mixtures/adapters/joint_training.py",
        "torch.nn.functional.pad(labels_BT != -100, (0, 1))",
        "torch.nn.functional.pad(labels_BT != -100, (1, 0))",
        "balance, z-loss and entropy are taken at the tokens after those that predict",
    ),
    # export
    Bug(
        "mixtures/export/export_formats.py",
        'theta = now.get("rope_theta", base.get("rope_theta", 10_000.0))',
        'theta = base.get("rope_theta", 10_000.0)',
        "an export of a model with rotary positions of its own has the usual ones",
    ),
    Bug(
        "mixtures/export/write_checkpoint.py",
        '        require_close(apart.written, f"{plan.format} of {folder}")\n',
        "",
        "an export that computes something else appears all the same",
    ),
    # growth
    Bug(
        "growth/novelty.py",
        "np.quantile(known, 1 - alarm / 2, axis=0)",
        "np.quantile(known, 1 - alarm, axis=0)",
        "twice as many known batches as was asked for are called new",
    ),
    Bug(
        "growth/expert_similarity.py",
        "[w * f.scale * f.B_OR.double() for w, f in parts]",
        "[f.scale * f.B_OR.double() for _, f in parts]",
        "two experts that are merged are summed instead of averaged by their shares",
    ),
    # evaluation
    Bug(
        "evaluation/compare.py",
        "tails = [(1 - level) / 2, (1 + level) / 2]",
        "tails = [(1 + level) / 2, (1 - level) / 2]",
        "the ends of every interval are swapped",
    ),
    Bug(
        "evaluation/choices.py",
        "np.array([nats / tokens for nats, tokens in scores])",
        "np.array([nats for nats, tokens in scores])",
        "options are not compared by nats a token: the shortest one wins",
    ),
    Bug(
        "evaluation/losses.py",
        '(arrays["target"][:, 1:] != 0) & kept_D[document_NT]',
        'arrays["target"][:, 1:] != 0',
        "documents that were trained on are called removed and counted all the same",
    ),
    Bug(
        "evaluation/questions.py",
        "[q.prompt, q.options, q.time and q.time.toordinal(), *chat]",
        "[q.prompt, q.options, *chat]",
        "the same questions as of other dates get the old answers",
    ),
    # report
    Bug(
        "report/page_template.py",
        "autoescape=True",
        "autoescape=False",
        "names and texts are put into the page as they are: whatever they hold is run",
    ),
    Bug(
        "report/tables.py",
        'clear = "better" if (interval[1] < 0) == measure.lower_is_better else "worse"',
        'clear = "better" if interval[1] < 0 else "worse"',
        "of accuracies the report says worse for better",
    ),
    # launch
    Bug(
        "launch/job_queue.py",
        "elif job.after <= done and len(running)",
        "elif len(running)",
        "a job starts before what it needs is done",
    ),
    Bug("launch/job_queue.py", "every[seat::seats] or", "every[seat:] or", "jobs beside each other use the same GPUs"),
    # run
    Bug(
        "run/usage.py",
        "share_G = tokens_G / tokens_G.sum()",
        "share_G = np.full(len(tokens_G), 1 / len(tokens_G))",
        "figures of routing are means over domains instead of over tokens",
    ),
    Bug(
        "run/evaluate.py",
        '        trained += [(parts.blocks(name, "train"), name) for m in self.recipe.mixtures for name in m.own_corpora]\n',
        "",
        "the check for leaks does not see what mixtures themselves were trained on",
    ),
    # recipe
    Bug(
        "recipe/lineage.py",
        "    for corpus in base.pretrain.corpora if base.pretrain else ():\n        _corpus(recipe, corpus, found)\n",
        "",
        "what the base was pre-trained on does not count for what an expert knows: strict dates leak",
    ),
    Bug(
        "recipe/expand.py",
        "return {**kept, **own}",
        "return {**own, **kept}",
        "an expert's own training settings are overruled by those for all",
    ),
    # cli
    Bug(
        "cli/store_command.py",
        "if report.damaged or report.lost:",
        "if report.lost:",
        "`store verify` of a damaged store ends with exit code 0",
    ),
    Bug(
        "cli/__init__.py",
        "_fail(error, str(error), error.exit_code)",
        "_fail(error, str(error), 1)",
        "a wrong request ends with the exit code of failed work",
    ),
    # api
    Bug(
        "api/remaking.py",
        "(*place.slots, *[name] * slots)",
        "(*place.slots, name)",
        "`add(..., slots=3)` gives an expert one slot",
    ),
    Bug(
        "api/spans.py",
        "knowledge=found.end)",
        "knowledge=found.start)",
        "an expert of a window answers dates before it has read all of it: a leak",
    ),
)
