// A pasted error message is words. To the search, "--out" would exclude the pages that have it, "x:"
// would name a field, and each word would be the beginning of others.
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  if (message?.type !== 2 || /^\s*\S*\s*$/.test(message.data)) return post.call(this, message, ...rest);
  const words = message.data.match(/[\p{L}\p{N}_]+([.-][\p{L}\p{N}_]+)*/gu) ?? [];
  const data = words.map((word, i) => words.length > 4 ? `${word}^1` : word).join(" ");
  return post.call(this, {...message, data}, ...rest);
};
