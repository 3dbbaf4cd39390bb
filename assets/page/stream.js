// Keeps what the server tells from being lost on its way into Gradio. Its client closes the one stream of a page when the
// server says so, whatever it has asked for meanwhile; a click that crosses that word is answered where nobody listens,
// and once a tick of the timer is among the lost, the page does not ask again and stands still until it is reloaded.
(() => {
  "use strict";
  const ask = window.fetch.bind(window);
  const awaited = new Set();  // events that the server has taken and not ended
  let asking = 0;  // events on their way to it

  window.fetch = (input, options) => {
    const path = new URL(input instanceof Request ? input.url : input, document.baseURI).pathname;
    if (path.endsWith("/queue/join")) return join(input, options);
    if (path.endsWith("/queue/data")) return listen(new Request(input, options));
    return ask(input, options);
  };

  async function join(input, options) {
    asking++;
    try {
      const answer = await ask(input, options);
      const told = await answer.clone().json().catch(() => ({}));
      if (told.event_id) awaited.add(told.event_id);
      return answer;
    } finally {
      asking--;
    }
  }

  // One stream for Gradio, as long as anything is awaited, of as many as the server makes of it.
  async function listen(request) {
    const first = await ask(request.clone());
    if (!first.ok || !first.body) return first;
    let messages = read(first);
    const body = new ReadableStream({
      async pull(sink) {
        for (;;) {
          const { value, done } = await messages.next();
          if (done) return sink.close();
          const ends = value.includes('"process_completed"') || value.includes('"close_stream"');
          const told = ends ? JSON.parse(value.replace(/^data:/, "")) : {};
          if (told.msg === "process_completed") awaited.delete(told.event_id);
          if (told.msg !== "close_stream" || !(asking || awaited.size)) return sink.enqueue(new TextEncoder().encode(`${value}\n\n`));
          const next = await ask(request.clone());
          if (!next.ok) throw new Error(`the server's answers are gone: ${next.status}`);
          messages = read(next);
        }
      },
      cancel: () => messages.return(),
    });
    return new Response(body, { status: first.status, headers: first.headers });
  }

  async function* read(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    try {
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const messages = (rest + value).split("\n\n");
        rest = messages.pop();
        yield* messages;
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }
})();
