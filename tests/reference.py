"""The QRNN of arXiv 1611.01576 in NumPy, one step at a time, with its gradients.

All fast implementations are tested against this file. It computes in float64 and reads
like the equations. `test_reference.py` tests it against finite differences.
"""

from dataclasses import dataclass

import numpy as np

GATES = {"f": "zf", "fo": "zfo", "ifo": "zfoi"}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(logits, targets):
    """The cross-entropy of each target under a softmax, and its gradient by logits."""
    losses, d_logits = np.zeros(targets.shape), np.zeros(logits.shape)
    for at in np.ndindex(targets.shape):
        softmax = np.exp(logits[at].astype("float64") - logits[at].max())
        softmax /= softmax.sum()
        losses[at] = -np.log(softmax[targets[at]])
        d_logits[at] = softmax
        d_logits[at][targets[at]] -= 1
    return losses, d_logits


def linear_scan(decay, inputs, initial_state, reverse=False):
    states, state = np.zeros_like(inputs), initial_state
    order = range(inputs.shape[1])
    for t in order[::-1] if reverse else order:
        state = decay[:, t] * state + inputs[:, t]
        states[:, t] = state
    return states


def linear_scan_gradients(decay, inputs, initial_state, d_states, reverse=False):
    """Gradients of `sum(states * d_states)` by decay, inputs and initial state."""
    states = linear_scan(decay, inputs, initial_state, reverse)
    d_decay, d_inputs = np.zeros_like(decay), np.zeros_like(inputs)
    order = list(range(inputs.shape[1]))
    order = order[::-1] if reverse else order
    adjoint = np.zeros_like(initial_state)
    for n in reversed(range(len(order))):
        t = order[n]
        previous = states[:, order[n - 1]] if n else initial_state
        adjoint = adjoint + d_states[:, t]
        d_inputs[:, t] = adjoint
        d_decay[:, t] = adjoint * previous
        adjoint = decay[:, t] * adjoint
    return d_decay, d_inputs, adjoint


@dataclass
class Result:
    outputs: np.ndarray  # (batch, time, units)
    cell: np.ndarray  # (batch, units)
    window: np.ndarray  # (batch, window - 1, features)
    gradients: dict  # of sum(outputs * d_outputs) + sum(cell * d_cell)
    attention: np.ndarray = None  # (batch, time, source_time)


def qrnn(
    x,
    kernel,
    bias,
    pooling="fo",
    cell=None,
    window=None,
    previous_output=None,
    mask=None,
    update_scale=None,
    zero_output_for_mask=False,
    padding="causal",
    context=None,
    context_kernel=None,
    d_outputs=None,
    d_cell=None,
):
    """A QRNN layer with tanh and sigmoid.

    Args:
        x: inputs, (batch, time, features).
        kernel: (window, features, gates * units); bias: (gates * units,), or
            (batch, gates * units) with one bias for each sequence.
        cell, window, previous_output: the state before the first step.
        padding: "causal": a step sees the `window - 1` steps before it. "same": it sees
            `(window - 1) // 2` steps before it and the rest after it, zeros beyond
            both ends, and `window` is not used.
        context, context_kernel: (batch, n) and (n, gates * units): their product is
            added to the gates of each step.
        mask: booleans (batch, time); a masked step leaves all state as it was.
        update_scale: zoneout's factor on the update, a number or (batch, time, units).
        d_outputs, d_cell: incoming gradients; the result then has `gradients`.
    """
    batch, time, features = x.shape
    size, _, channels = kernel.shape
    units = channels // len(GATES[pooling])
    cell = np.zeros((batch, units)) if cell is None else cell
    window = np.zeros((batch, size - 1, features)) if window is None else window
    repeats_cell = previous_output is None and pooling == "f"
    if previous_output is None:
        previous_output = cell if pooling == "f" else np.zeros((batch, units))
    mask = np.ones((batch, time), bool) if mask is None else mask
    update_scale = 1.0 if update_scale is None else update_scale
    update_scale = np.broadcast_to(update_scale, (batch, time, units))

    outputs = np.zeros((batch, time, units))
    last_cell, last_window = np.zeros((batch, units)), window.copy()
    gradients = {
        "x": np.zeros_like(x),
        "kernel": np.zeros_like(kernel),
        "bias": np.zeros_like(bias),
        "cell": np.zeros_like(cell),
        "window": np.zeros_like(window),
    }
    if context is not None:
        gradients["context"] = np.zeros_like(context)
        gradients["context_kernel"] = np.zeros_like(context_kernel)
    for b in range(batch):
        c, h = cell[b], previous_output[b]
        # What the convolutions see in turn, and where the gradient of each entry goes.
        valid = np.flatnonzero(mask[b])
        before = [(window[b, n], ("window", n)) for n in range(size - 1)]
        after = []
        if padding == "same":
            left, zero = (size - 1) // 2, (np.zeros(features), None)
            before, after = [zero] * left, [zero] * (size - 1 - left)
        seen = before + [(x[b, t], ("x", t)) for t in valid] + after
        tape, d_repeated = [], 0
        for t in range(time):
            if not mask[b, t]:
                outputs[b, t] = 0 if zero_output_for_mask else h
                if d_outputs is not None and not zero_output_for_mask:
                    if tape:
                        tape[-1]["d_h"] = tape[-1]["d_h"] + d_outputs[b, t]
                    elif repeats_cell:
                        d_repeated = d_repeated + d_outputs[b, t]
                continue
            taps, origin = zip(*seen[len(tape) : len(tape) + size], strict=True)
            taps = np.stack(taps)
            y = (bias if bias.ndim == 1 else bias[b]) + np.einsum(
                "jf,jfc->c", taps, kernel
            )
            if context is not None:
                y = y + context[b] @ context_kernel
            gate = dict(zip(GATES[pooling], np.split(y, len(y) // units), strict=True))
            z, f = np.tanh(gate["z"]), sigmoid(gate["f"])
            o = sigmoid(gate["o"]) if "o" in gate else 1.0
            k = update_scale[b, t]
            forget = 1 - k * (1 - f)
            i = k * sigmoid(gate["i"]) if "i" in gate else 1 - forget
            previous, c = c, forget * c + i * z
            h = o * c
            outputs[b, t] = h
            d_h = 0 if d_outputs is None else d_outputs[b, t]
            tape.append(
                {"taps": taps, "origin": origin, "z": z, "f": f, "o": o, "k": k}
                | {"i": i, "forget": forget, "previous": previous, "c": c, "d_h": d_h}
            )
        last_cell[b] = c
        if size > 1 and padding == "causal":
            last_window[b] = [step for step, _ in seen[-(size - 1) :]]
        if d_outputs is None:
            continue

        d_c = np.zeros(units) if d_cell is None else d_cell[b].copy()
        for s in reversed(tape):
            d_c = d_c + s["d_h"] * s["o"]
            d_z = d_c * s["i"]
            if pooling == "ifo":
                d_f = d_c * s["previous"] * s["k"]
            else:
                d_f = d_c * (s["previous"] - s["z"]) * s["k"]
            d_y = [d_z * (1 - s["z"] ** 2), d_f * s["f"] * (1 - s["f"])]
            if pooling != "f":
                d_y.append(s["d_h"] * s["c"] * s["o"] * (1 - s["o"]))
            if pooling == "ifo":
                gate_i = np.divide(s["i"], s["k"], where=s["k"] > 0, out=0 * s["i"])
                d_y.append(d_c * s["z"] * s["k"] * gate_i * (1 - gate_i))
            d_y = np.concatenate(d_y)
            gradients["kernel"] += s["taps"][:, :, None] * d_y
            gradients["bias"][... if bias.ndim == 1 else b] += d_y
            if context is not None:
                gradients["context"][b] += context_kernel @ d_y
                gradients["context_kernel"] += np.outer(context[b], d_y)
            for place, tap in zip(s["origin"], kernel, strict=True):
                if place is not None:
                    name, n = place
                    gradients[name][b, n] += tap @ d_y
            d_c = d_c * s["forget"]
        gradients["cell"][b] = d_c + d_repeated
    return Result(outputs, last_cell, last_window, gradients)


def attention_qrnn(
    x,
    kernel,
    bias,
    output_kernel,
    source,
    source_mask=None,
    mask=None,
    cell=None,
    previous_output=None,
    update_scale=None,
    zero_output_for_mask=False,
    context_kernel=None,
    d_outputs=None,
    d_cell=None,
    d_attention=None,
    **convolution,
):
    """An AttentionQRNN layer: equation 8.

    Args:
        output_kernel: (2 * units, units), W_k above W_c.
        source: the encoder's outputs, (batch, source_time, units).
        source_mask: booleans (batch, source_time).
        d_attention: incoming gradient, (batch, time, source_time).
        convolution, other arguments: as in `qrnn`.
    """
    batch, time, _ = x.shape
    units = output_kernel.shape[1]
    w_k, w_c = output_kernel[:units], output_kernel[units:]
    mask = np.ones((batch, time), bool) if mask is None else mask
    if source_mask is None:
        source_mask = np.ones(source.shape[:2], bool)
    attention = np.zeros((batch, time, source.shape[1]))
    if previous_output is None:
        previous_output = np.zeros((batch, units))
    has_gradient = d_outputs is not None
    if has_gradient and d_attention is None:
        d_attention = np.zeros_like(attention)

    # The states are f-pooled. The output gates sigmoid(y) = (1 + tanh(y / 2)) / 2 come
    # from the candidates of a layer that forgets its state at each step.
    state = {"cell": cell, "update_scale": update_scale}
    for_cells, for_gates = {"mask": mask}, {"mask": mask}
    for name, weight in (
        ("kernel", kernel), ("bias", bias), ("context_kernel", context_kernel),
    ):  # fmt: skip
        if weight is not None:
            z, f, o = np.split(weight, 3, axis=-1)
            never = np.full(units, -700.0) if name == "bias" else np.zeros_like(f)
            for_cells[name] = np.concatenate([z, f], axis=-1)
            for_gates[name] = np.concatenate([o / 2, never], axis=-1)
    for_cells |= {"pooling": "f", **convolution}
    for_gates |= {"pooling": "f", **convolution}
    pooled = qrnn(x, **for_cells, **state)
    gates = (1 + qrnn(x, **for_gates).outputs) / 2

    outputs = np.zeros((batch, time, units))
    d_cells, d_gates = np.zeros_like(outputs), np.zeros_like(outputs)
    d_source, d_output_kernel = np.zeros_like(source), np.zeros_like(output_kernel)
    for b in range(batch):
        seen = source[b, source_mask[b]]
        valid = np.flatnonzero(mask[b])
        for t in range(time):
            before = valid[valid <= t]
            if not mask[b, t]:
                repeated = outputs[b, before[-1]] if before.size else previous_output[b]
                outputs[b, t] = 0 if zero_output_for_mask else repeated
                continue
            c, o = pooled.outputs[b, t], gates[b, t]
            a = np.exp(seen @ c - (seen @ c).max(initial=-np.inf))
            a /= a.sum()
            k = a @ seen
            mixed = k @ w_k + c @ w_c
            outputs[b, t], attention[b, t, source_mask[b]] = o * mixed, a
            if not has_gradient:
                continue
            d_h, after = d_outputs[b, t].copy(), valid[valid > t]
            if not zero_output_for_mask:
                end = after[0] if after.size else time
                d_h += d_outputs[b, t + 1 : end].sum(0)
            d_gates[b, t] = d_h * mixed
            d_mixed = d_h * o
            d_output_kernel += np.outer(np.concatenate([k, c]), d_mixed)
            d_k = w_k @ d_mixed
            d_a = seen @ d_k + d_attention[b, t, source_mask[b]]
            d_scores = a * (d_a - a @ d_a)
            d_cells[b, t] = w_c @ d_mixed + d_scores @ seen
            d_source[b, source_mask[b]] += np.outer(a, d_k) + np.outer(d_scores, c)
    gradients = {}
    if has_gradient:
        back = {"zero_output_for_mask": True, "d_outputs": d_cells, "d_cell": d_cell}
        pooled = qrnn(x, **for_cells, **state, **back)
        back |= {"d_outputs": d_gates / 2, "d_cell": None}
        by_cells, by_gates = pooled.gradients, qrnn(x, **for_gates, **back).gradients
        for name in by_cells:
            if "kernel" in name or name == "bias":
                by_o = by_gates[name][..., :units] / 2
                gradients[name] = np.concatenate([by_cells[name], by_o], axis=-1)
            else:
                gradients[name] = by_cells[name] + by_gates[name]
        gradients["cell"] = by_cells["cell"]
        gradients |= {"source": d_source, "output_kernel": d_output_kernel}
    return Result(outputs, pooled.cell, pooled.window, gradients, attention)
