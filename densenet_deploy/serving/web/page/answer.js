// What the outputs of a model mean, as `densenet_deploy.runtime.meaning` has it: classes with softmax scores, labels with
// a sigmoid and a threshold each, numbers, or a feature vector.

/**
 * Return what a row of outputs says, best first: {task, entries: [{index, score, positive}], norm}.
 *
 * @param row Float32Array of one image's outputs.
 * @param meaning {task, activation, thresholds} of facts.json.
 */
export function answerOf(row, meaning) {
  if (!row.every(Number.isFinite)) throw new Error("the model gave numbers that are not finite");
  const { task, thresholds } = meaning, scores = scoresOf(row, meaning);
  const indices = Array.from(row.keys());
  if (task === "features") return { task, entries: [], length: row.length, norm: Math.sqrt(row.reduce((sum, value) => sum + value * value, 0)) };
  if (task === "regression") return { task, entries: indices.map((index) => ({ index, score: scores[index] })) };
  // By the outputs: scores far below the best underflow to equal zeros.
  const best = indices.sort((a, b) => row[b] - row[a] || a - b);
  const positive = (index) => scores[index] >= thresholdOf(thresholds, index, scores);
  return {
    task,
    entries: best.map((index) => ({
      index, score: scores[index], ...(task === "multilabel" ? { positive: positive(index) } : {}),
    })),
  };
}

/** Return the scores from 0 to 1 of a row of outputs; of a regression and features, the outputs. */
export function scoresOf(row, { task, activation }) {
  if (activation !== "none") return row;
  if (task === "multiclass") return softmax(row);
  return task === "multilabel" ? Float64Array.from(row, (value) => 1 / (1 + Math.exp(-Math.max(value, -700)))) : row;
}

/** Return the threshold of a label, in the precision of the scores. */
export function thresholdOf(thresholds, index, scores) {
  const threshold = thresholds.length === 1 ? thresholds[0] : thresholds[index];
  return scores instanceof Float32Array ? Math.fround(threshold) : threshold;
}

function softmax(row) {
  const most = row.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(row, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
