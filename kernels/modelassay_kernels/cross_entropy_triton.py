def available(): return False
primal_=tangents_=None
