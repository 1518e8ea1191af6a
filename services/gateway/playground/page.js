// What the page says: status, errors, the clock of the request in progress.

export const $ = id => document.getElementById(id);
let work = null;  // the AbortController of the request in progress

export const working = () => work !== null;
export const abort = () => work?.abort();

export let pressed = null;  // the button that was pressed last: its error is shown beside it as well
for (const name of ["click", "keydown", "drop"]) {
  document.addEventListener(name, event => { pressed = event.target.closest?.("button, .button") ?? null; }, true);
}

const beside = $("beside");  // kept, because the lists that it stands in are made anew
function write(status, error) {
  $("status").textContent = status;
  $("error").textContent = beside.textContent = error;
  beside.hidden = !error;
}

export function showModel(model) {
  if (!model) return;
  const parts = [model.name, model.digest.slice(0, 12), model.uncalibrated && "uncalibrated scores", model.without_masks && "makes no masks"];
  $("model").textContent = parts.filter(Boolean).join(" · ");
  for (const id of ["phrase", "modes", "tab-find", "tab-everything", "refine"]) $(id).disabled = model.without_masks;
  document.querySelector("#find button").disabled = model.without_masks;
  if (model.without_masks) $("refine").checked = false;
}

export const say = text => write(text, "");
export function fail(error, at = pressed) {
  if (error.name === "AbortError") return;
  const locked = error.status === 401;
  write("", locked ? "This service wants an API key: type it in the menu, then try again." : error.message);
  if (locked) { $("menu").togglePopover(true); $("key").focus(); }
  if (locked) { beside.hidden = true; return; }
  if (at?.offsetParent && at.closest("#panels, #menu")) (at.closest(".row") ?? at).after(beside);
  else $("picture").append(beside);
  beside.classList.toggle("upper", Boolean(at?.closest("header")));
  beside.scrollIntoView({block: "nearest"});
}

/** What may say more where an answer takes long: the list of models sets it. */
export const on = {slow: null};

/** Run a question with a clock and a way to cancel; a new question ends the one before. */
export async function busy(question) {
  work?.abort();
  const mine = work = new AbortController(), start = performance.now(), at = pressed;
  const tick = setInterval(() => {
    const seconds = (performance.now() - start) / 1000;
    $("elapsed").textContent = `${seconds.toFixed(1)} s`;
    if (seconds < 0.4 || !$("busy").hidden) return;
    $("busy").hidden = false;
    say("Asking the service …");
    on.slow().catch(() => {});
  }, 100);
  $("busy").hidden = true;
  say("");
  try {
    const answer = await question(mine.signal);
    return mine.signal.aborted ? null : {...answer, ms: Math.round(performance.now() - start)};
  } catch (error) { fail(error, at); return null; } finally {
    clearInterval(tick);
    if (work === mine) {
      work = null;
      if (document.activeElement === $("cancel")) (at ?? $("stage")).focus();
      $("busy").hidden = true;
      $("progress").removeAttribute("value");
    }
  }
}
