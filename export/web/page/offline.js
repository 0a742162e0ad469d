// Registers the service worker, which caches the page for offline use.

const PATIENCE = 1000; // milliseconds for which the first text waits

/**
 * Resolve once the page is cached, or after PATIENCE.
 * @param {(text: string) => void} tell
 */
export async function keep(tell) {
  const workers = navigator.serviceWorker; // undefined without https or localhost
  if (!workers) return tell("Offline use needs https or localhost.");
  const works = "Works offline with the models you have opened.";
  const had = Boolean(workers.controller);
  const taken = new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true }));
  const registered = await workers.register("sw.js", { updateViaCache: "none" }).catch(() => undefined);
  if (!registered) return tell("Not available offline: the browser does not allow it here.");
  const { installing } = registered;
  if (had) {
    taken.then(() => tell("A newer version of this page is available: reload it."));
    return tell(works);
  }
  taken.then(() => tell(works)); // also if that is later
  await Promise.race([taken, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
  if (workers.controller) return;
  if (installing?.state === "redundant") tell("Not available offline: the browser has no room for it.");
  else tell("Works offline from your next visit on.");
}
