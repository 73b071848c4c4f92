// The feed of server-sent events, and the buttons' way back.

const RETRY_FIRST_MS = 1000;
const RETRY_MAX_MS = 8000;

/**
 * Follows the feed until the page is closed. `onMessage` gets every update as an object, `onState` "open" or "gone".
 * The browser's own reconnection gives up after some errors, so the connection is made anew each time.
 */
export function follow(onMessage, onState) {
  let retryMs = RETRY_FIRST_MS;
  const connect = () => {
    const source = new EventSource("/feed");
    source.onopen = () => {
      retryMs = RETRY_FIRST_MS;
      onState("open");
    };
    source.onmessage = (event) => onMessage(JSON.parse(event.data));
    source.onerror = () => {
      source.close();
      onState("gone");
      setTimeout(connect, retryMs);
      retryMs = Math.min(retryMs * 2, RETRY_MAX_MS);
    };
  };
  connect();
}

/** Presses a button; resolves to `{ok, message, hint}` whatever happens. */
export async function act(path) {
  try {
    const response = await fetch(`/actions/${path}`, { method: "POST" });
    const answer = await response.json();
    return { ok: response.ok, message: answer.message, hint: answer.hint };
  } catch {
    return { ok: false, message: "the demo did not answer", hint: "it may have ended" };
  }
}
