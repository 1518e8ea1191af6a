// Short texts that this browser remembers; where it forbids that, or has no room, the page does until it is closed.

const here = new Map();

/** The text of a name: "" if there is none. `set` returns whether the browser has it. */
export const remembered = name => ({
  get() {
    try { return here.get(name) ?? localStorage.getItem(name) ?? ""; } catch { return ""; }
  },
  set(text) {
    here.delete(name);
    try {
      text ? localStorage.setItem(name, text) : localStorage.removeItem(name);
      return true;
    } catch { here.set(name, text); return false; }
  },
});
