// What the page says: status, errors, the clock of the request in progress.

export const $ = id => document.getElementById(id);
let work = null;  // the AbortController of the request in progress

export const working = () => work !== null;
export const abort = () => work?.abort();

export function say(text) { $("status").textContent = text; $("error").textContent = ""; }
export function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  if (error.status === 401) { $("key").focus(); $("error").textContent = "This service wants an API key: type it above, then try again."; }
}

/** Run a question with a clock and a way to cancel; a new question ends the one before. */
export async function busy(question) {
  work?.abort();
  const mine = work = new AbortController(), start = performance.now();
  const tick = setInterval(() => {
    const seconds = (performance.now() - start) / 1000;
    $("busy").hidden = seconds < 0.4;
    $("elapsed").textContent = `${seconds.toFixed(1)} s`;
  }, 100);
  $("error").textContent = "";
  try {
    const answer = await question(mine.signal);
    return mine.signal.aborted ? null : {...answer, ms: Math.round(performance.now() - start)};
  } catch (error) { fail(error); return null; } finally {
    clearInterval(tick);
    if (work === mine) { work = null; $("busy").hidden = true; $("progress").removeAttribute("value"); }
  }
}
