// Work on many photographs: a few at a time, and patient with a service that is busy.

const AT_ONCE = 2, PAUSE = 1500;  // requests; milliseconds until a busy service is asked again
const LATE = 3;  // times that one photograph may take too long

/** Run `act` on each item, a few at a time, until all are done, one throws, or `signal` says stop. */
export async function forEach(items, act, signal) {
  const waiting = items.values();
  const worker = async () => { for (const item of waiting) { if (signal.aborted) return; await act(item); } };
  await Promise.all(Array.from({length: AT_ONCE}, worker));
}

/** Return what `ask` answers once the service is not busy. */
export async function patiently(ask) {
  for (let late = 0; ;) {
    try { return await ask(); } catch (error) {
      if (![429, 502, 503, 504].includes(error.status) || (error.status === 504 && ++late === LATE)) throw error;
      await new Promise(next => setTimeout(next, PAUSE));
    }
  }
}
