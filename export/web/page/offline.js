// Registers the service worker, which caches the page for offline use.

const TIMEOUT = 1000; // milliseconds that the first text waits at most

/**
 * Resolve once the page is cached, or after TIMEOUT.
 * @param {(text: string) => void} report
 */
export async function enableOffline(report) {
  const workers = navigator.serviceWorker; // undefined without https or localhost
  if (!workers) return report("Offline use needs https or localhost.");
  const available = "Works offline with the models you have opened.";
  const controlled = Boolean(workers.controller);
  const activated = new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true }));
  const registration = await workers.register("sw.js", { updateViaCache: "none" }).catch(() => undefined);
  if (!registration) return report("Not available offline: the browser does not allow it here.");
  if (controlled) {
    activated.then(() => report("A newer version of this page is available: reload it."));
    return report(available);
  }
  const { installing } = registration;
  /** @type {Promise<string>} */
  const failed = new Promise((resolve) => {
    installing?.addEventListener("statechange", () => {
      if (installing.state === "redundant") resolve("Not available offline: the browser has no room for it.");
    });
  });
  /** @type {Promise<string>} */
  const late = new Promise((resolve) => setTimeout(() => resolve("Works offline from your next visit on."), TIMEOUT));
  // A later activation changes nothing: the service worker has not seen the files that are opened meanwhile.
  report(await Promise.race([activated.then(() => available), failed, late]));
  failed.then(report);
}
