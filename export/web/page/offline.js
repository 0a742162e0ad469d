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
  const { installing } = registration;
  if (controlled) {
    activated.then(() => report("A newer version of this page is available: reload it."));
    return report(available);
  }
  activated.then(() => report(available)); // even after the timeout
  await Promise.race([activated, new Promise((resolve) => setTimeout(resolve, TIMEOUT))]);
  if (workers.controller) return;
  if (installing?.state === "redundant") report("Not available offline: the browser has no room for it.");
  else report("Works offline from your next visit on.");
}
