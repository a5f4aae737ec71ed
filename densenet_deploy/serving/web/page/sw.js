// Keeps the page for use offline, and adds the headers that static hosts cannot send: with them the browser gives the
// model several threads. Registered as sw.js?version=NAME, where NAME is the folder of the page's files.

const version = new URL(self.location).searchParams.get("version");
const prefix = `densenet-deploy ${self.registration.scope} `;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => event.waitUntil(forgetOthers()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith(request.mode === "navigate" ? page(request) : file(request));
});

async function keep() {
  const cache = await caches.open(prefix + version);
  const list = await fetch(`${version}/files.json`, { cache: "no-cache" });
  await cache.addAll(["./", ...(await list.json()).map((name) => `${version}/${name}`)]);
}

async function forgetOthers() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(prefix) && name !== prefix + version).map((name) => caches.delete(name)));
}

/** The page itself comes from the network while there is one, so that a new version is seen at once. */
async function page(request) {
  try {
    const response = await fetch(request);
    return response.ok ? withHeaders(response) : response;
  } catch (error) {
    const kept = await caches.match("./", { cacheName: prefix + version });
    if (!kept) throw error;
    return withHeaders(kept);
  }
}

/** Files of a version never change. */
async function file(request) {
  return withHeaders((await caches.match(request, { cacheName: prefix + version })) ?? (await fetch(request)));
}

function withHeaders(response) {
  const { status, statusText, body } = response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(body, { status, statusText, headers });
}
