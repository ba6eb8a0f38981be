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

  // ---- microphone
  const WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([input]) { if (input[0]) this.port.postMessage(input[0].slice()); return true; }
  });`;
  let mic = null;  // { mode, stream, context, pending, sending, ended }

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
        if (!options.sampleRate) throw error;
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
    let opened;
    try {
      opened = await openMicrophone();
    } catch (error) {
      say(error.name === "NotAllowedError"
        ? "The browser may not use the microphone: allow it in the address bar, or type."
        : `No microphone can be used here (${error.message}). You can type, or add a recording.`);
      return;
    }
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
    if (mode === "talk") server().hush({ token: link.token });
    showMic();
    say(mode === "talk" ? "Listening. Press again to send, Esc to discard." : "Hands-free: just speak. Speaking also stops an answer.");
  };

  const server = () => link.server;

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
    const heard = await server().hear({
      token: link.token, pcm: samples(mine), rate: mine.context.sampleRate,
      hands_free: mine.mode === "hands", first: mine.first, last,
    }).catch(() => ({ note: "The server cannot be reached. Is it still running?" }));
    mine.first = false;
    mine.sending = false;
    if (mine.discarded) return;
    if (heard.note) say(heard.note);
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
    if (!mine) return;
    mic = null;
    mine.last = true;
    mine.discarded = discard;
    for (const track of mine.stream.getTracks()) track.stop();
    mine.context.close();
    document.body.style.setProperty("--level", 0);
    say("");
    showMic();
    if (!discard) send(mine);
  };

  const toggle = async (mode) => {
    const was = mic?.mode;
    stop(was === "hands");
    if (was !== mode) await start(mode);
  };

  // Held down, the button sends when let go; a short press starts, the next one sends.
  const pressToTalk = (button) => {
    let downAt = 0, startedByPress = false;
    button.addEventListener("pointerdown", async () => {
      downAt = performance.now();
      startedByPress = mic?.mode !== "talk";
      if (startedByPress) await toggle("talk");
    });
    button.addEventListener("pointerup", () => {
      const held = performance.now() - downAt > 500;
      if (!startedByPress || held) if (mic?.mode === "talk") stop();
    });
    button.addEventListener("click", (event) => {
      if (event.detail === 0) toggle("talk");  // by the keyboard
    });
  };

  // ---- the header
  const download = async () => {
    const text = await server().transcript({ token: link.token });
    if (!text) { say("There is nothing to save yet."); return; }
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    anchor.download = "conversation.json";
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  };

  const settings = () => document.querySelector("#settings .toggle-button")?.click();
  const theme = () => document.body.classList.toggle("dark");

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-replay], .voice button, [data-act]");
    if (!button) return;
    if (button.dataset.replay) replay(Number(button.dataset.replay));
    else if (button.dataset.act) ({ download, settings, theme })[button.dataset.act]?.();
    else toggleRecording(button.closest(".voice"));
  });
  document.addEventListener("keydown", (event) => {
    awake();
    if (event.key !== "Escape") return;
    if (mic?.mode === "talk") stop(true);
    else if (document.querySelector("#settings.open")) settings();
    else interrupt();
  });
  document.addEventListener("pointerdown", awake);
  window.addEventListener("pagehide", () => stop(true));

  return {
    wire: (props, watch, server) => {
      const take = () => {
        const value = props.value ?? {};
        link = { ask: link?.ask, server, token: value.token || link?.token };
        receive(value);
      };
      watch("value", take);
      take();
    },
    microphone: (ask) => {
      link = { ...link, ask };
      pressToTalk(buttons().talk);
      buttons().hands.addEventListener("click", () => toggle("hands"));
      showMic();
    },
    interrupt,
    stats,
    playing: () => playing.length > 0,
  };
})();
