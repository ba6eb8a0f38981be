// The page's own part: microphone, playing, the buttons of the header. Gradio does the rest.
// Sound goes to the server as 16-bit samples, a quarter of a second at a time, and comes back sentence by sentence.
window.llasm = (() => {
  const CHUNK_SECONDS = 0.25;
  const KEPT_REPLIES = 50;
  let link = null;      // { server, token }: how to reach this page's conversation
  let context = null;   // plays; made at the first touch, because browsers keep silent before it

  // ---- playing
  const replies = new Map();  // reply id → AudioBuffers of its sentences
  let playing = [];           // sources that sound now or are due
  let due = 0;                // when the last of them ends
  let current = null;         // { reply, taken }: the answer whose sentences are arriving
  let clip = null;            // the <audio> of a recording in a bubble
  const stats = { started: 0, stopped: 0 };

  const awake = () => {
    context ??= new AudioContext();
    if (context.state === "suspended") context.resume();
    return context;
  };

  const hush = () => {
    if (playing.length) stats.stopped += 1;
    for (const source of playing) { source.onended = null; source.stop(); }
    playing = [];
    due = 0;
    if (clip) { clip.pause(); clip.onpause?.(); clip = null; }
    document.body.classList.remove("llasm-playing");
  };

  const play = (buffer) => {
    const source = new AudioBufferSourceNode(awake(), { buffer });
    source.connect(context.destination);
    due = Math.max(due, context.currentTime + 0.03);
    source.start(due);
    due += buffer.duration;
    source.onended = () => {
      playing = playing.filter((other) => other !== source);
      document.body.classList.toggle("llasm-playing", playing.length > 0);
    };
    playing.push(source);
    stats.started += 1;
    document.body.classList.add("llasm-playing");
  };

  const receive = async ({ reply, clips }) => {
    if (!reply) return;
    if (current?.reply !== reply) {
      hush();
      current = { reply, taken: 0, silent: false };
    }
    const mine = current;
    while (mine.taken < clips.length) {
      const content = await (await fetch(clips[mine.taken++])).arrayBuffer();
      const buffer = await awake().decodeAudioData(content);
      if (!replies.has(reply)) replies.set(reply, []);
      replies.get(reply).push(buffer);
      if (replies.size > KEPT_REPLIES) replies.delete(replies.keys().next().value);
      if (mine === current && !mine.silent) play(buffer);
    }
  };

  const interrupt = () => {  // the rest of the answer that arrives now stays unheard
    if (current) current.silent = true;
    hush();
  };

  const replay = (reply) => {
    const wasPlaying = playing.length > 0;
    interrupt();
    if (!wasPlaying) for (const buffer of replies.get(reply) ?? []) play(buffer);
  };

  const toggleRecording = (bubble) => {
    const button = bubble.querySelector("button");
    const again = clip && bubble.dataset.playing;
    interrupt();
    if (again) return;
    const sound = new Audio(bubble.dataset.audio);
    const over = () => { delete bubble.dataset.playing; button.classList.remove("on"); };
    sound.onended = sound.onpause = over;
    bubble.dataset.playing = "yes";
    button.classList.add("on");
    clip = sound;
    sound.play().catch(over);
  };

  // ---- what the page says about itself
  const say = (text) => {
    const line = document.querySelector("#status .line");
    if (line) line.textContent = text;
  };

  // ---- the server, which may be gone
  const UNREACHABLE = "The server cannot be reached. This page goes on by itself once it is back.";
  let knock = 0;  // the timer that asks whether it is

  const lost = (what = UNREACHABLE) => {
    stop(true);
    say(what);
    if (document.body.classList.contains("llasm-lost")) return;
    document.body.classList.add("llasm-lost");
    knock = setInterval(async () => {
      const answer = await fetchPlainly("health").catch(() => null);
      if (answer?.ok) found("The server is back.");
    }, 2000);
  };

  const found = (what = "") => {
    if (!document.body.classList.contains("llasm-lost")) return;
    clearInterval(knock);
    document.body.classList.remove("llasm-lost");
    say(what);
  };

  // Gradio asks for the app's id only after an answer's stream broke, and loads the page anew as soon as it is told.
  // The token lets that one load, and no other, find its conversation again.
  const fetchPlainly = window.fetch.bind(window);
  window.fetch = async (...given) => {
    const reconnecting = /\/app_id$/.test(given[0]?.url ?? given[0]);
    if (reconnecting) {
      sessionStorage.setItem("llasm-token", link?.token ?? "");
      lost();
    }
    try {
      const response = await fetchPlainly(...given);
      if (!reconnecting) found();
      return response;
    } catch (error) {
      if (error.name !== "AbortError") lost();
      throw error;
    }
  };

  const resume = () => {
    const token = sessionStorage.getItem("llasm-token") ?? "";
    sessionStorage.removeItem("llasm-token");
    return token;
  };

  // A call of one of the page's functions on the server; undefined where it failed, which Gradio does not throw.
  const call = async (name, data) => {
    const told = await link.server[name]({ token: link.token, ...data });
    if (told === undefined) lost();
    if (told?.token) link.token = told.token;
    if (told?.note) say(told.note);
    return told;
  };

  // ---- microphone
  const WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([input]) { if (input[0]) this.port.postMessage(input[0].slice()); return true; }
  });`;
  let mic = null;      // { mode, stream, context, pending, sending, last }
  let opening = null;  // { mode } while the browser opens the microphone, perhaps asking the user first

  const buttons = () => ({ talk: document.getElementById("talk"), hands: document.getElementById("hands") });

  const showMic = () => {
    const { talk, hands } = buttons();
    const mode = mic?.mode;
    talk.setAttribute("aria-pressed", mode === "talk");
    hands.setAttribute("aria-pressed", mode === "hands");
    talk.setAttribute("aria-label", mode === "talk" ? "Send what you said" : "Talk");
    hands.setAttribute("aria-label", mode === "hands" ? "End hands-free" : "Hands-free");
    document.body.dataset.mic = mode ?? "off";
  };

  const release = (stream) => {
    for (const track of stream.getTracks()) track.stop();
  };

  const openMicrophone = async () => {
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    for (const options of [{ sampleRate: 16000 }, {}]) {  // Firefox takes only the device's own rate
      const input = new AudioContext(options);
      try {
        await input.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));
        const tap = new AudioWorkletNode(input, "tap");
        input.createMediaStreamSource(stream).connect(tap);
        return { stream, context: input, tap };
      } catch (error) {
        await input.close();
        if (!options.sampleRate) {
          release(stream);
          throw error;
        }
      }
    }
  };

  const start = async (mode) => {
    interrupt();
    awake();
    if (!navigator.mediaDevices?.getUserMedia) {
      say("The browser gives the microphone only to https pages and to localhost.");
      return;
    }
    const asked = opening = { mode };
    say("Waiting for the microphone…");
    let opened;
    try {
      opened = await openMicrophone();
      if (asked !== opening) {  // meanwhile it was told to stop, or to start in the other mode
        release(opened.stream);
        opened.context.close();
        return;
      }
    } catch (error) {
      if (asked === opening) opening = null;
      say(error.name === "NotAllowedError"
        ? "The browser may not use the microphone: allow it in the address bar, or type."
        : `No microphone can be used here (${error.message}). You can type, or add a recording.`);
      return;
    }
    opening = null;
    mic = { mode, ...opened, pending: [], length: 0, sending: false, first: true, last: false };
    const mine = mic;
    mic.tap.port.onmessage = ({ data }) => {
      if (mine.last) return;
      mine.pending.push(data);
      mine.length += data.length;
      const peak = data.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      mine.level = Math.max(peak, (mine.level ?? 0) * 0.92);
      document.body.style.setProperty("--level", Math.min(1, mine.level * 2.5).toFixed(3));
      if (mine.length >= CHUNK_SECONDS * mine.context.sampleRate) send(mine);
    };
    if (mode === "talk") link.server.hush({ token: link.token });
    showMic();
    say(mode === "talk" ? "Listening. Press again to send, Esc to discard." : "Hands-free: just speak. Speaking also stops an answer.");
  };

  const samples = (mine) => {
    const all = new Int16Array(mine.length);
    let at = 0;
    for (const piece of mine.pending) for (const sample of piece) {
      all[at++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
    }
    mine.pending = [];
    mine.length = 0;
    const bytes = new Uint8Array(all.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  };

  const send = async (mine) => {
    if (mine.sending) return;  // what comes meanwhile goes with the next
    mine.sending = true;
    const last = mine.last;
    const heard = await call("hear", {
      pcm: samples(mine), rate: mine.context.sampleRate, hands_free: mine.mode === "hands", first: mine.first, last,
    });
    mine.first = false;
    mine.sending = false;
    if (!heard) lost("The server cannot be reached, so what you said last was not heard.");
    if (!heard || mine.discarded) return;
    if (heard.speaking) {
      interrupt();
      say("Listening…");
    }
    if (heard.turns) {
      say("");
      link.ask();
    }
    if (mine.last && !last) send(mine);
  };

  const stop = (discard = false) => {
    const mine = mic;
    if (opening) say("");
    opening = null;
    if (!mine) return;
    mic = null;
    mine.last = true;
    mine.discarded = discard;
    release(mine.stream);
    mine.context.close();
    document.body.style.setProperty("--level", 0);
    say("");
    showMic();
    if (!discard) send(mine);
  };

  const micMode = () => (mic ?? opening)?.mode;

  const toggle = async (mode) => {
    const was = micMode();
    stop(was === "hands");
    if (was !== mode) await start(mode);
  };

  // Held down, the button sends when let go; a short press starts, the next one sends.
  const pressToTalk = (button) => {
    let downAt = 0, startedByPress = false;
    button.addEventListener("pointerdown", async () => {
      downAt = performance.now();
      startedByPress = micMode() !== "talk";
      if (startedByPress) await toggle("talk");
    });
    button.addEventListener("pointerup", () => {
      const held = performance.now() - downAt > 500;
      const sends = startedByPress ? held && mic : micMode() === "talk";  // let go to answer the browser's question, it stays
      if (sends) stop();
    });
    button.addEventListener("click", (event) => {
      if (event.detail === 0) toggle("talk");  // by the keyboard
    });
  };

  // ---- the header
  const download = async () => {
    const text = await call("transcript");
    if (text === "") say("There is nothing to save yet.");
    if (!text || typeof text !== "string") return;
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    anchor.download = "conversation.json";
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  };

  const settings = () => document.querySelector("#settings .toggle-button")?.click();

  const theme = () => {
    localStorage.setItem("llasm-theme", document.body.classList.contains("dark") ? "light" : "dark");
    showTheme();
  };
  const showTheme = () => {
    const chosen = localStorage.getItem("llasm-theme");
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  };

  // ---- what Gradio's own controls leave out
  const named = (given) => {  // the attached files' names
    requestAnimationFrame(() => document.querySelectorAll("#box .thumbnail-item").forEach((item, i) => {
      item.dataset.name = item.title = given?.files?.[i]?.orig_name ?? "";
    }));
  };

  const focusBox = () => {  // where a touch would open the screen's keyboard, it waits to be touched
    if (matchMedia("(pointer: fine)").matches) document.querySelector("#box textarea")?.focus();
  };

  const copy = async (button) => {
    const text = [...button.closest(".message-row").querySelectorAll(".message-content")].map((part) => part.innerText);
    await navigator.clipboard.writeText(text.join("\n\n"));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };

  // The user's text is shown as it was typed: the server escapes what Markdown would read (conversation.py).
  const editPlainly = ({ target }) => {
    if (!target.matches?.("#chat .edit-textarea") || target.dataset.plain) return;
    target.dataset.plain = "yes";
    target.value = target.value.replace(/\\(.)/g, "$1").replaceAll("\u00a0", " ");
    target.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("focusin", editPlainly);

  document.addEventListener("click", (event) => {
    if (event.target.closest("#chat [aria-label=Undo]")) focusBox();  // where the question goes back to
    const button = event.target.closest("[data-replay], .voice button, [data-copy], [data-act], [data-clear]");
    if (!button) return;
    if ("clear" in button.dataset) stop(true);
    else if (button.dataset.replay) replay(Number(button.dataset.replay));
    else if ("copy" in button.dataset) copy(button);
    else if (button.dataset.act) ({ download, settings, theme })[button.dataset.act]?.();
    else toggleRecording(button.closest(".voice"));
  });
  document.addEventListener("keydown", (event) => {
    awake();
    if (event.key !== "Escape") return;
    if (micMode() === "talk" || opening) stop(true);
    else if (document.querySelector("#settings.open")) settings();
    else interrupt();
  });
  document.addEventListener("pointerdown", awake);
  window.addEventListener("pagehide", () => stop(true));

  return {
    wire: (props, watch, server) => {
      const take = () => {
        const value = props.value ?? {};
        if (value.token) focusBox();
        link = { ...link, server, token: value.token || link?.token };
        receive(value);
      };
      watch("value", take);
      take();
      showTheme();
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);  // after Gradio's own listener
    },
    microphone: (ask) => {
      link = { ...link, ask };
      pressToTalk(buttons().talk);
      buttons().hands.addEventListener("click", () => toggle("hands"));
      showMic();
    },
    named,
    resume,
    interrupt,
    stats,
    playing: () => playing.length > 0,
  };
})();
