// What a page remembers. A browser may forbid storage (blocked site data, some private windows): then it lasts as long as the page.

function keeper(storage) {
  const spare = new Map();
  return {
    get(key, otherwise) {
      if (spare.has(key)) return spare.get(key);
      try {
        return JSON.parse(globalThis[storage].getItem(`avatar.${key}`)) ?? otherwise;
      } catch {
        return otherwise;
      }
    },
    set(key, value) {
      spare.set(key, value);
      try {
        globalThis[storage].setItem(`avatar.${key}`, JSON.stringify(value));
      } catch {
        // forbidden or full: the spare has it
      }
    },
  };
}

export const browserKeeps = keeper("localStorage"); // choices: for the next visit
export const tabKeeps = keeper("sessionStorage"); // secrets: for this tab, reloads included
